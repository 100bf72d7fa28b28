"""What a run will need, from sizes alone: parameters, bytes and time, before any weight is loaded (``asg plan``).

A backbone says what it is (:class:`ModelShape`, the manifest's ``plan`` target); everything else is arithmetic here.
Nothing is measured. Memory is that of the largest moment, time a lower bound with a stated overhead of launches.
"""
