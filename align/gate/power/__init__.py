"""What the gate can tell before it decides: margins, items, power and cost."""
