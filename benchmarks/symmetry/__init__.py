"""What symmetry whole networks have: found by tracing, proved by running, counted by the Jacobian."""
