/* connector/survey_masks.h - a changed mask, for followers: rows that they hold are of the old one.
 *
 * Thread: the watch's, before anybody else has the survey. Pure. */
#ifndef SPATE_CONNECTOR_SURVEY_MASKS_H
#define SPATE_CONNECTOR_SURVEY_MASKS_H

#include "connector/privacy.h"
#include "connector/survey.h"

/* What exclude and mask make of a table's columns belongs to the way by which it is published: when it
 * changes, the table has come into the stream anew. Without rules nothing changes. */
void spate_survey_masks(struct spate_survey *survey, const struct spate_privacy *privacy);

#endif
