"""The load generator: requests out, figures in. `engineroom bench` and `engineroom test-streaming`.

Nothing here knows the rest of the house but its errors, so that any server can be measured.

::

    parse, lengths, arrivals, prompts, targets    what to send and when       pure
    sse, answers                                  what came back              pure
    client, driver, worker                        one process that asks       I/O
    crew, trial                                   several of them, in phases  I/O
    figures, histogram, timeline, compare         what it means               pure
    report, html, plots                           what a person reads         pure
    streaming                                     do tokens arrive as made?   pure
"""
