"""Ray on this machine: the memory it gets, and a start that tolerates a busy processor."""
