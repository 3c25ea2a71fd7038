"""What people look at: the console's summary, the page, exports, checked tables.

Nothing is judged here; a verdict that is shown comes from `judge`.
"""
