"""Many users at once on one model: pages, sequences and the scheduler are policy and know no torch."""
