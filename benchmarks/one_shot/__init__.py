"""One pass over networks whose data sets no meta-training saw, against training on the same examples."""
