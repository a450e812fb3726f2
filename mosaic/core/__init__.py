"""The shared language: errors, nouns, journal, store, and the gate that every effect passes."""
