"""One pass over networks whose data sets no meta-training saw."""
