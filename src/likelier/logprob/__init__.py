"""Hidden states to log-probs of chosen tokens: the plain twin and the chunked one."""
