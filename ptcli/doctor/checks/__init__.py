"""What `ptcli doctor` looks at. Each module reads facts of this machine, and judges them in pure functions."""
