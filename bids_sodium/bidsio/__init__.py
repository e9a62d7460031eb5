"""The edge: everything that touches a disk."""
