"""Mutants of the code that guards: each is a copy of the project with one small defect, which the tests must notice
(REQUIREMENTS S11). `docs/proof.md` says how to run them and how to add one."""
