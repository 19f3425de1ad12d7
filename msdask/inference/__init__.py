"""Inference: trained models on images and slides; one file a task."""
