"""Running programs that nobody has read: a process of its own for each, with limits that the kernel enforces."""
