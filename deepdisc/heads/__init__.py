"""What is measured on a region of interest: class and box, mask, redshift, ... one file per quantity."""
