"""Training: a recipe, its data, one loop for every objective and family."""
