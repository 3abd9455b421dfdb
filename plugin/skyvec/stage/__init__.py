"""The stage: a HATS catalog in, one verified file per HATS pixel out, on Dask."""
