"""Sandboxes of Linux: namespaces, Landlock, bubblewrap, and limits of a process."""
