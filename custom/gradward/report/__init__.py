"""Leakage records and what people look at: tables, pages, pictures."""
