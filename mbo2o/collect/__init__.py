"""Commands that make datasets: play a policy, train SAC, measure the returns of a score."""
