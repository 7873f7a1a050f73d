"""Federated training: parties that keep their data, rounds of local training, one merge rule."""
