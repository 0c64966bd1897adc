"""The bucket itself: where in it things lie, who may do what there, and how it is set up."""
