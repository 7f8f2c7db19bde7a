"""How fast eventbus is, beside what Python allows at all and what others do: ``python -m benchmarks``.

Read `rows` first: it says what is measured and what is asked of it. Then the sides: `ours`, the limit (`hand`, `raw`), and the peers. This
package imports nothing of eventbus but in `ours`, so that a peer can run in an environment where eventbus is not installed.
"""
