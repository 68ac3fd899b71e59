"""Agents that are prompts, and the vendors whose models answer them, through pydantic-ai's models."""
