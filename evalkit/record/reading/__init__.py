"""Readers of records and of lm-eval's results, whoever wrote them.

Every file is read within limits; nothing in it is run, opened or imported. A file that can't be
what it says raises BROKEN; whether what it says is true is for `judge` to find out.
"""
