"""Tests that start a real Ray cluster: its environment must stand before anyone imports ray."""

from service.ray_environment import prepare_local

prepare_local()
