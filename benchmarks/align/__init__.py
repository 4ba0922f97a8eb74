"""Loss between two networks that were trained apart, before and after they are brought into one gauge."""
