"""Plans of what the gate can tell: margins, items, power and cost."""
