"""Pure decisions: no clock, no dice, no socket, no asyncio, no logging. Time and chance enter as arguments."""
