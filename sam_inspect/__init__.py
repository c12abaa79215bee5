"""sam_inspect: find defects in camera images, outline them with SAM, measure them, and say pass or fail."""
