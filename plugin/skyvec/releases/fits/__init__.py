"""FITS files of surveys: stamps cut from images, spectra of DESI and SDSS."""
