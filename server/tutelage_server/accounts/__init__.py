"""Keys, tenants, who calls, and what they may."""
