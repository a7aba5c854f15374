"""Trigger the CRE workflow once for each confirmed request.

The datastore is authoritative for what was sent: an ``attempt`` row is committed before a socket opens, the bytes are
frozen at the first claim, and every retry sends the same bytes under the same id with a fresh token.  What CRE
answers is judged by a pure function; what is not understood is in doubt, and the same id may always be sent again.

Reading order: ``payload`` (the bytes), ``signing`` (the token), ``classification`` (what an answer means),
``cre_gateway`` and ``cre_simulate`` (the two ways out).
"""
