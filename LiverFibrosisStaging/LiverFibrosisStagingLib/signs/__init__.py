"""Signs of fibrosis measured from CT and masks, and their published values by stage."""
