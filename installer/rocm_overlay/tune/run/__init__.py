"""Driving a tuner on the user's device, shape by shape: resumable, sceptical of its answers, ended by an A/B."""
