"""Slides: whole-slide images as lazy arrays, at stored levels or at any physical scale."""
