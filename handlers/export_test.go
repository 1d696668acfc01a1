package handlers

// ProblemStatuses are the statuses that each code of the table is answered with.
func ProblemStatuses() map[string][]int {
	statuses := map[string][]int{}
	for _, row := range problems {
		statuses[row.code] = append(statuses[row.code], row.status)
	}
	return statuses
}
