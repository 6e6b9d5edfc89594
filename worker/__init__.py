"""The data plane: arrays, graphs, gradients, steps. Knows nothing of users, gRPC or the service."""
