"""Fixtures shared by all tests; the parts themselves live in tests/support."""

from __future__ import annotations
