"""The selectors of a coverage, one file each: from what is known of a frame to a weight per cell of the BEV grid."""
