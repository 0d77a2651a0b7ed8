"""The judge: scores candidate items aspect by aspect, offline (S-GRec, arXiv 2602.10606, PSJ part A)."""
