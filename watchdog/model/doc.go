// Package model knows what a bundle is: its manifest, which of its files are code and which are
// coefficients, the digests and the version that follow from them, and how a bundle gets into and
// out of a zip without harm.
//
// Nothing here runs a model, opens a socket or keeps state: the package reads, checks and names.
package model
