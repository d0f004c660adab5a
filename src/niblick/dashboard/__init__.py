"""`niblick dashboard`: live curves of all runs in a folder, from the files that the runs write.

Guarantees: it reads only, and only below the folders that it is given; it answers on loopback
only, to no other site's page; what runs hold is shown as text, never as markup.
"""

from niblick.dashboard.server import Dashboard

__all__ = ["Dashboard"]
