"""What is tried before a candidate that the gate refused is given up."""
