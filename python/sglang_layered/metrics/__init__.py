"""What a server tells an operator: the table of metrics, their instruments, and what fills them."""
