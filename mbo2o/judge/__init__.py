"""How good a policy is, as far as a log says: what stands for evaluations where there is no simulator."""
