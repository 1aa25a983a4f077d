"""Records of measured numbers, and the tables, figures and pages made from them."""
