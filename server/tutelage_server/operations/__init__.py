"""Health, metrics, the API's description."""
