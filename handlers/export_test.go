package handlers

// Problem is a row of the table.
type Problem struct {
	Err       error
	Status    int
	Code      string
	Retryable bool
}

// Problems are the rows of the table.
func Problems() (all []Problem) {
	for _, row := range problems {
		all = append(all, Problem{row.err, row.status, row.code, row.retryable})
	}
	return all
}
