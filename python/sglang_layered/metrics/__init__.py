"""What a server tells an operator: the table of metrics, their Prometheus instruments, and what fills them."""
