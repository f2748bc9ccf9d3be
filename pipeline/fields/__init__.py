"""The further fields of a teacher store, computed: from what a detector says to the arrays of a frame."""
